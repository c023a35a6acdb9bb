"""The queue on the disk: the journal, the store and what is given up; and how all of it is found again."""
