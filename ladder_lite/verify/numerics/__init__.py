"""Where an integrand lives and breaks; quadrature; numbers with a bound of their own error."""
