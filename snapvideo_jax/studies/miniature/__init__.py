"""The paper's tables and figures in miniature: small networks on moving shapes, several seeds."""
