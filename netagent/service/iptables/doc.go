// Package iptables renders service frontends as iptables rules. It is pure: frontends and what
// iptables-save printed go in, the input of one `iptables-restore --noflush` per family comes out,
// holding only the chains whose rules changed.
//
// A first packet to a service walks
//
//	PREROUTING, OUTPUT -> BRAID-SERVICES -> BRAID-ADDRESSES (by address), else
//	                                        BRAID-NODEPORTS (by port, for addresses of this node)
//	  -> BRAID-D-<hash>...   one chain per address prefix or port range, at most 16 rules each
//	  -> BRAID-W-<hash>      who may come, of a frontend with source ranges
//	  -> BRAID-F-<hash>      one frontend: who is masqueraded, then a random backend
//	  -> BRAID-I-<hash>      the backends for this node and its pods, where they have others
//	  -> BRAID-B-<hash>      a backend on this node: masquerade it when it calls itself
//
// so that its cost grows with the logarithm of the number of services. Masquerading is decided by a mark
// that POSTROUTING takes away again.
//
// What is refused is so in the filter table, where targets may drop and reject. It is walked after
// translation: a new connection that was not translated by then had no backend, or was not allowed one. There
// is a tree of the same shape for frontends that refuse some or all, one over the cluster IPs (BRAID-CLUSTERIPS)
// for their other ports, and a rule for the rest of the service ranges.
package iptables
