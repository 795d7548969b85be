"""Tables 6 and 7: clusterers of COIL-20 and CMU PIE."""
