"""Teachers: built once as artefacts, on rows that they may see, before any student trains."""
