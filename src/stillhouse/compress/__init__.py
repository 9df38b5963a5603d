"""A student into variants that fit the device."""
