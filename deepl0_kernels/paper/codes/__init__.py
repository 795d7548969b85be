"""Tables 1 to 3: codes of digits, predicted."""
