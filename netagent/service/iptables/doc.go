// Package iptables renders service frontends as iptables rules. It is pure: frontends and what
// iptables-save printed go in, the input of one `iptables-restore --noflush` per family comes out,
// holding only the chains whose rules changed.
//
// A first packet to a service walks
//
//	PREROUTING, OUTPUT -> BRAID-SERVICES -> BRAID-ADDRESSES (by address), else
//	                                        BRAID-NODEPORTS (by port, for addresses of this node)
//	  -> BRAID-D-<hash>...   one chain per address prefix or port range, at most 16 rules each
//	  -> BRAID-F-<hash>      one frontend: who is masqueraded, then a random backend
//	  -> BRAID-B-<hash>      only for a backend on this node: masquerade it when it calls itself
//
// so that its cost grows with the logarithm of the number of services. Frontends without backends
// are in the filter table in a tree of the same shape, which only new connections enter. Masquerading
// is decided by a mark that POSTROUTING takes away again.
package iptables
