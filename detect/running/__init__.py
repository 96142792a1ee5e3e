"""How a training run goes: its processes, its optimizer, its weights, its log and its checkpoints."""
