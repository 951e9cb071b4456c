"""What others offer for the same operations, each imported only where it is measured."""
