"""What commands keep of a run, draw of it, and show: records, figures, pages."""
