"""Container images and runtimes: how a stage's command is put into an image."""
