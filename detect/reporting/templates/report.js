const pictures = document.getElementById("pictures");
const score = document.getElementById("score");

function showScores() {
  const least = Number(score.value);
  document.getElementById("score-told").textContent = least.toFixed(2);
  const totals = { right: 0, wrong: 0, missed: 0 };
  for (const sample of pictures.children) {
    const counts = { right: 0, wrong: 0, missed: 0, ignored: 0 };
    for (const shape of sample.querySelectorAll(".detection")) {
      const shown = Number(shape.dataset.score) >= least;
      shape.style.display = shown ? "" : "none";
      if (shown) counts[["right", "wrong", "ignored"].find(verdict => shape.classList.contains(verdict))] += 1;
    }
    for (const shape of sample.querySelectorAll(".true")) {
      const missed = !(Number(shape.dataset.found) >= least);
      shape.classList.toggle("missed", missed);
      counts.missed += missed;
    }
    sample.querySelector(".counts").textContent = inWords(counts);
    for (const name in totals) totals[name] += counts[name];
  }
  document.getElementById("totals").textContent = inWords(totals);
}

function inWords(counts) {
  return `${counts.right} right, ${counts.wrong} wrong, ${counts.missed} missed`;
}

// Names keep their size on the screen, however large the pictures are.
function fitNames() {
  for (const picture of pictures.querySelectorAll(".pair svg")) {
    if (picture.clientWidth) picture.style.setProperty("--letter", 13 * picture.viewBox.baseVal.width / picture.clientWidth);
  }
}

function showLayer(box) {
  const turnsOn = box.value === "beside" || box.value === "verdicts";
  pictures.classList.toggle(turnsOn ? box.value : "hide-" + box.value, turnsOn === box.checked);
  fitNames();
}

if (pictures) {
  const columns = document.getElementById("columns");
  const setColumns = () => {
    pictures.style.setProperty("--columns", columns.value);
    fitNames();
  };
  for (const box of document.querySelectorAll("#controls input[type=checkbox]")) {
    box.addEventListener("change", () => showLayer(box));
    showLayer(box);
  }
  document.getElementById("controls").addEventListener("submit", event => event.preventDefault());
  score.addEventListener("input", showScores);
  columns.addEventListener("input", setColumns);
  window.addEventListener("resize", fitNames);
  showScores();
  setColumns();
}

function sortRows(table, head, column) {
  const ascending = head.getAttribute("aria-sort") === "descending" || (column === 0 && !head.hasAttribute("aria-sort"));
  for (const other of table.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const key = row => column ? Number(row.cells[column].dataset.value) : row.cells[0].textContent;
  const compare = (a, b) => column ? key(a) - key(b) : key(a).localeCompare(key(b));
  const rows = [...table.tBodies[0].rows].sort((a, b) => ascending ? compare(a, b) : compare(b, a));
  table.tBodies[0].append(...rows);
}

const table = document.getElementById("class-table");
if (table) {
  [...table.tHead.rows[1].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => sortRows(table, head, column));
  });
}

// Paper has nothing to click on.
window.addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details")) each.open = true;
});
