"""Questions asked with the framework; nothing below imports them."""
