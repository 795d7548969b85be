"""Tables 4 and 5: classifiers of MNIST and Indian Pines."""
