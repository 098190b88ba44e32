package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
)

// exclusion says why specs are not run.
type exclusion struct {
	specs   *regexp.Regexp // on the full name
	network string         // empty: both
	why     string
}

// exclusions are tried in order.
var exclusions = []exclusion{
	{regexp.MustCompile(`\[Feature:SCTPConnectivity\]`), "", "the kernel here has no SCTP sockets, which the servers and clients of these specs open"},
	{regexp.MustCompile(`\[Feature:NetworkPolicy\]`), networkStock, "network policy: the stock network does not enforce it"},
	{regexp.MustCompile(`\[Provider:GCE\]|\[Feature:Networking-(IPv4|IPv6|DNS)\]|Forward (PTR|external name) lookup`), "", "needs the Internet"},
	{regexp.MustCompile(`recreate its iptables rules`), "", "Disruptive: deletes iptables rules over SSH on every node"},
	{regexp.MustCompile(`work after restarting (apiserver|kube-proxy)`), "", "Disruptive: restarts that program as a pod of the cluster, which it is not here"},
	{regexp.MustCompile(`kube-proxy migration`), "", "Disruptive: moves kube-proxy itself between a DaemonSet and static pods, on GCE"},
}

// excluded returns why a spec is not run on a network, or "".
func excluded(network, spec string) string {
	for _, e := range exclusions {
		if (e.network == "" || e.network == network) && e.specs.MatchString(spec) {
			return e.why
		}
	}
	return ""
}

// dualSpec tells the specs for dual-stack clusters; all others are for single-stack ones.
var dualSpec = regexp.MustCompile(`\[Feature:IPv6DualStack\]`)

// familyOf returns the kind of cluster that a spec is run on.
func familyOf(spec string) string {
	if dualSpec.MatchString(spec) {
		return "dual"
	}
	return "v4"
}

// round is one cluster and the specs that run on it.
type round struct {
	Network, Family string
	Nodes, Zones    int
	specs           *regexp.Regexp // on the full name
	not             *regexp.Regexp
}

var (
	// wide tells the specs that want three zones, some of them with two nodes each. Two nodes do for the
	// others, except for a few that want three.
	wide = regexp.MustCompile(`\[sig-network\] (Traffic Distribution|Topology Hints) `)
	// crowd tells the spec that fills a cluster with ten thousand services.
	crowd   = regexp.MustCompile(`\[Feature:PerformanceDNS\]`)
	every   = regexp.MustCompile(``)
	special = regexp.MustCompile(wide.String() + `|` + crowd.String())
	none    = regexp.MustCompile(`^$`)
)

func rounds() []round {
	var out []round
	for _, network := range []string{networkBraid, networkStock} {
		out = append(out,
			round{network, "v4", 3, 3, every, special},
			round{network, "v4", 6, 3, wide, none},
			round{network, "v4", 1, 0, crowd, none},
			round{network, "dual", 2, 0, every, none})
	}
	return out
}

// choose returns the specs that a round runs.
func (r round) choose(all []string, focus, skip *regexp.Regexp) []string {
	return slices.DeleteFunc(slices.Clone(all), func(spec string) bool {
		return familyOf(spec) != r.Family || excluded(r.Network, spec) != "" || !r.specs.MatchString(spec) || r.not.MatchString(spec) || !focus.MatchString(spec) || skip.MatchString(spec)
	})
}

// exactly returns the regular expression that matches these specs only, as ginkgo applies it: to the suite's
// name and the spec's.
func exactly(specs []string) string {
	var names []string
	for _, s := range specs {
		names = append(names, regexp.QuoteMeta(s))
	}
	return " (" + strings.Join(names, "|") + ")$"
}

// listSpecs returns the names of upstream's [sig-network] specs.
func (o *options) listSpecs(ctx context.Context) ([]string, error) {
	text, err := run(exec.CommandContext(ctx, o.bin("e2e.test"), "--list-tests"))
	if err != nil {
		return nil, err
	}
	var out []string
	for line := range strings.Lines(text) {
		if i := strings.Index(line, ": "+specPrefix); i >= 0 {
			out = append(out, strings.TrimSpace(line[i+2:]))
		}
	}
	slices.Sort(out)
	if len(out) == 0 {
		return nil, fmt.Errorf("e2e.test --list-tests names no spec of %s", specPrefix)
	}
	return slices.Compact(out), nil
}
