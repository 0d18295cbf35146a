"""The bundled plugins, written as yours would be: they import nothing of the host but its front door."""
