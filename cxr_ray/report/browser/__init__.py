"""The browser: a page of all test images with their maps, scores and curves, in a folder beside the report."""
