// Package lab is the playground: a whole cluster on one machine, its nodes being network namespaces.
//
// Each node runs the real netagent and coredns as separate processes, pods are made by calling the
// CNI binary as a container runtime would, and the underlay the nodes hang on is itself inside a
// namespace, so the machine's own links, routes and rules stay untouched. All that exists outside
// the namespaces is: handles under /run/netns, a folder under /run/braid-lab, and processes.
//
// `up` writes the folder and starts a daemon, which builds everything and keeps it running; the
// other verbs talk to the daemon over a unix socket. `exec` and `down` need no daemon: they work
// from the folder and the namespace handles alone, so that they also work after a crash.
package lab
