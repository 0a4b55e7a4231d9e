"""What all HTML pages share: layout, style, charts, and texts in two languages."""
