"""Options that several commands share: declared once, the same defaults everywhere."""
