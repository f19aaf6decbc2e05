"""Other projects' selective scans on our operator: known entry points, stand-ins for packages."""
