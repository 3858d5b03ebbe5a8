"""The published methods, one file each: a settings class and one function, `stylize`."""
