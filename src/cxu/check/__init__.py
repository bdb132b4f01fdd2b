"""Do a table and the images at hand belong together: sizes, place, sides."""
