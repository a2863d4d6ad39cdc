"""How figures look, on the page and as pictures: their colours, their axes, and their way to SVG and PNG."""
