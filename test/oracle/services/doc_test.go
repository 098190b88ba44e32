// Package services compares Braid's service modes with kube-proxy, packet by packet. Both modes of both
// get the same clusters, made at random and changed at random, each in a network namespace of its own;
// then the same packets are sent in all four, and what may become of a packet must be the same, except
// for the differences in intended_test.go.
//
// kube-proxy's proxiers are linked in: the code of its release, without the API server in front of it.
package services
