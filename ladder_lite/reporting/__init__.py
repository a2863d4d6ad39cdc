"""Reports: what runs found (findings), in words and figures (chapters, sketches), as a page and as Markdown."""
