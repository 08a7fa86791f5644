"""What builds write into: a claimed folder, local or behind a URL, in which what is finished stays."""
