"""From files, arrays and videos to what is found in them."""
