"""codes + labels -> numbers with floors, intervals and pictures. Knows SAEs and data; runs no training."""
