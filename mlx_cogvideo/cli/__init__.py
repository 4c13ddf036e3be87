"""The command line: arguments, progress bars and messages. Nothing else in the package prints."""
