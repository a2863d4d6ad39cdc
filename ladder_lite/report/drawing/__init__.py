"""Drawing of figures: colours, axes, and output as SVG and PNG."""
