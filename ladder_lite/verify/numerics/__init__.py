"""Find where an integrand is defined and breaks; quadrature; ball arithmetic; definite integrals."""
