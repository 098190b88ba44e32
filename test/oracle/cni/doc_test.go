// Package cni compares our CNI plugin with the reference plugins bridge, host-local, portmap and bandwidth. Both
// get the same configurations, made at random, through the library that container runtimes use: what is written
// for the reference plugins, and the same with the `type` changed. Each has a node and pods of its own, network
// namespaces, on which the same calls are made. What the calls return, what is in the pods, on the node and on
// the disk, and who answers whom must be the same then, except for the differences in intended_test.go.
//
// A third node begins with one of the two and goes on with the other, as in a migration: it must give the same
// addresses.
package cni
