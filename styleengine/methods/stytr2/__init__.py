"""StyTr² (Deng et al., CVPR 2022): the network. Its weights are in training, so it is no method of the engine yet."""
