"""The torch stack. Imported only inside trainer, chat and worker processes."""
