package main

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// usageError is a command line that cannot be meant.
type usageError struct{ error }

// family is how one address family of a cluster is laid out.
type family struct {
	name     string
	underlay netip.Prefix // what the nodes' wires carry
	control  netip.Addr   // the control plane on it
	first    netip.Addr   // node 0 on it, which does not exist; node i is i further
	pods     netip.Prefix // split among the nodes by the controller manager
	services netip.Prefix
	dns      netip.Addr // the cluster's DNS service
}

var families = map[string]family{
	"v4": {
		name: "v4", underlay: netip.MustParsePrefix("192.168.200.0/24"), control: netip.MustParseAddr("192.168.200.1"),
		first: netip.MustParseAddr("192.168.200.10"), pods: netip.MustParsePrefix("10.244.0.0/16"),
		services: netip.MustParsePrefix("10.96.0.0/16"), dns: netip.MustParseAddr("10.96.0.10"),
	},
	"v6": {
		name: "v6", underlay: netip.MustParsePrefix("fd00:200::/64"), control: netip.MustParseAddr("fd00:200::1"),
		first: netip.MustParseAddr("fd00:200::10"), pods: netip.MustParsePrefix("fd00:10:244::/56"),
		services: netip.MustParsePrefix("fd00:10:96::/112"), dns: netip.MustParseAddr("fd00:10:96::a"),
	},
}

// node returns the address of node number i, from 1.
func (f family) node(i int) netip.Addr {
	a := f.first
	for range i {
		a = a.Next()
	}
	return a
}

// options are the settings of a cluster. They are kept beside it, for the commands after `up`.
type options struct {
	Name     string
	Nodes    int
	Families []string // names in families; the first is the primary one
	State    string   // folder of this cluster
	Cache    string   // folder of built programs and images, named after the versions
	Root     string   // the repository
	Images   []string // archives to load
	Deploy   string   // manifest of the network; empty = none
	Host     bool     // run bin/netagent as a program of the nodes instead
	Network  string   // braid (Deploy or Host) or stock
	Gates    string   // feature gates of all programs
	Zones    int      // how many zones the nodes are dealt to; 0 = none
	Balancer bool     // run a load balancer beside the control plane
	Settings []string // lines for the agents' settings in Deploy
}

const maxNodes = 200

func (o *options) families() []family {
	out := make([]family, 0, len(o.Families))
	for _, name := range o.Families {
		out = append(out, families[name])
	}
	return out
}

// each joins what fn says of every family.
func (o *options) each(fn func(family) string) string {
	var out []string
	for _, f := range o.families() {
		out = append(out, fn(f))
	}
	return strings.Join(out, ",")
}

func (o *options) bin(name string) string  { return filepath.Join(o.Cache, "bin", name) }
func (o *options) path(p ...string) string { return filepath.Join(append([]string{o.State}, p...)...) }
func (o *options) pki(name string) string  { return o.path("pki", name) }
func (o *options) kubeconfig() string      { return o.path("admin.kubeconfig") }

// places are the namespaces' owners: the control plane and every node.
func (o *options) places() []string {
	out := []string{control}
	for i := 1; i <= o.Nodes; i++ {
		out = append(out, nodeName(i))
	}
	return out
}

func nodeName(i int) string { return fmt.Sprintf("node%d", i) }

// nsName is the network namespace of a place as `ip netns` lists it.
func (o *options) nsName(place string) string { return nsPrefix(o.Name) + place }

func nsPrefix(cluster string) string { return "braidcluster-" + cluster + "-" }

// cgroup is the cluster's cgroup below the root of each hierarchy.
func (o *options) cgroup() string { return "/braid-cluster-" + o.Name }

// flags declares what every command takes: which cluster is meant.
func flags(cmd string, o *options) *flag.FlagSet {
	f := flag.NewFlagSet(cmd, flag.ContinueOnError)
	f.StringVar(&o.Name, "name", envOr("BRAID_CLUSTER", "test"), "name of the cluster; $BRAID_CLUSTER")
	f.StringVar(&o.Cache, "cache", envOr("BRAID_CLUSTER_CACHE", "/var/cache/braid-cluster"), "folder for built programs and images; $BRAID_CLUSTER_CACHE")
	f.StringVar(&o.State, "state", envOr("BRAID_CLUSTER_STATE", "/var/lib/braid-cluster"), "folder for running clusters, on a disk (not overlayfs); $BRAID_CLUSTER_STATE")
	return f
}

func envOr(key, value string) string {
	if v := os.Getenv(key); v != "" {
		return v
	}
	return value
}

// parse reads flags and settles the folders. It returns what is left of the command line.
func parse(f *flag.FlagSet, o *options, args []string) ([]string, error) {
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, usageError{errors.New("")}
		}
		return nil, usageError{err}
	}
	if strings.Trim(o.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || o.Name == "" || len(o.Name) > 20 {
		return nil, usageError{fmt.Errorf("name %q: use up to 20 lower-case letters, digits and hyphens", o.Name)}
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("a cluster needs namespaces and mounts: run it as root")
	}
	root, err := findRoot()
	if err != nil {
		return nil, err
	}
	o.Root = root
	for _, dir := range []*string{&o.Cache, &o.State} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return nil, err
		}
	}
	o.Cache = filepath.Join(o.Cache, versionKey())
	o.State = filepath.Join(o.State, o.Name)
	return f.Args(), nil
}

// findRoot finds the repository from the working directory upwards: `go run -C` changes it.
func findRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "test/cluster/build/kubernetes/go.mod")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is not inside Braid's repository: run this from there", dir)
		}
	}
}

// userFile finds a file that was named on the command line: from the working directory, or, since
// `go run -C` moves that, from the repository's root.
func (o *options) userFile(name string) (string, error) {
	for _, p := range []string{name, filepath.Join(o.Root, name)} {
		if _, err := os.Stat(p); err == nil {
			return filepath.Abs(p)
		}
	}
	return "", fmt.Errorf("there is no file %s, neither here nor in %s", name, o.Root)
}

// setFamilies takes v4, v6 or dual.
func (o *options) setFamilies(s string) error {
	switch s {
	case "v4", "v6":
		o.Families = []string{s}
	case "dual":
		o.Families = []string{"v4", "v6"}
	default:
		return usageError{fmt.Errorf("family %q: use v4, v6 or dual", s)}
	}
	return nil
}
