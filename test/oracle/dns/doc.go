// Package dns compares the answers of two real programs, CoreDNS 1.15 with its own kubernetes plugin
// and Braid's coredns, that read the same cluster from the same API server with the same Corefile.
// Everything is in its tests; -oracle.seed and -oracle.queries choose another run.
package dns
