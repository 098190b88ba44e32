package main

import (
	"fmt"
	"path/filepath"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/test/bench/process"
)

// subject is a program that is measured, with its settings.
type subject struct {
	name string
	argv func(kubeconfig, dir string) []string
	ours bool
	// pauses says that it waits a second from one change of the rules to the next.
	pauses bool
}

// subjects lists what can be measured: our agent in both modes, and the peer in both modes, each with
// the smallest pause between two syncs that it can be given, and with the one that it has by itself.
func subjects(netagent, kubeProxy string) []subject {
	var out []subject
	for _, mode := range []string{"nftables", "iptables"} {
		out = append(out, subject{name: "braid " + mode, ours: true, argv: func(kubeconfig, dir string) []string {
			return []string{netagent, "run", "--node", nodeName, "--kubeconfig", kubeconfig, "--service-mode", mode, "--overlay", "none",
				"--cni-conf-dir", "", "--run-dir", filepath.Join(dir, "run"), "--state-dir", filepath.Join(dir, "state"),
				"--conntrack-max-per-core", "0"} // the size of the table belongs to the machine
		}})
	}
	for _, mode := range []string{"nftables", "iptables"} {
		for _, pause := range []string{"0s", "1s"} {
			out = append(out, subject{name: fmt.Sprintf("kube-proxy %s, %s", mode, pause), pauses: pause != "0s", argv: func(kubeconfig, _ string) []string {
				return []string{kubeProxy, "--kubeconfig", kubeconfig, "--hostname-override", nodeName, "--proxy-mode", mode,
					"--cluster-cidr", clusterCIDR.String(), "--conntrack-max-per-core", "0",
					"--iptables-min-sync-period", pause} // of nftables mode too, which has no flag of its own
			}})
		}
	}
	return out
}

// start starts a subject in a namespace.
func (s subject) start(ns *netns.NS, url, dir string) (*process.Process, error) {
	conf, err := process.Kubeconfig(dir, url)
	if err != nil {
		return nil, err
	}
	return process.Start(ns, dir, s.argv(conf, dir)...)
}
