"""ControlledLR, the scheduler that puts a controller in charge of the learning rate."""
