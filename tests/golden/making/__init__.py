"""What make.py needs: one module per format, and the table of cases."""
