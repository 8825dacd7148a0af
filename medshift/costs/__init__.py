"""What work costs that nobody has timed: operations counted, how often, and the speed that is assumed."""
