"""The sections of a page, a module each. Each reads the tables of a run and gives headings, notes and blocks."""
