package main

import (
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/test/bench/process"
)

// What stands beside ours, by the names under which test/cluster builds it.
const (
	kubeRouter      = "kube-router-v2.1.0"           // only its policy controller: iptables and ipset
	networkPolicies = "kube-network-policies-v1.1.1" // has new connections judged in user space, by way of nfqueue
)

// subject is a program that is measured, with its settings.
type subject struct {
	name  string
	argv  func(kubeconfig, dir string) []string
	peer  bool
	needs string // a statement of nft that the kernel has to know; empty: none beyond what nft has had for long
}

func subjects(o *options) []subject {
	var out []subject
	for _, mode := range []string{"nftables", "iptables"} {
		out = append(out, subject{name: "braid " + mode, argv: func(kubeconfig, dir string) []string {
			return []string{o.netagent, "run", "--node", nodeName, "--kubeconfig", kubeconfig, "--policy", "enforce", "--policy-mode", mode, "--service-mode", mode,
				"--overlay", "none", "--cni-conf-dir", filepath.Join(dir, "cni"), "--run-dir", filepath.Join(dir, "run"), "--state-dir", filepath.Join(dir, "state"),
				"--conntrack-max-per-core", "0"} // the size of the table belongs to the machine
		}})
	}
	return append(out,
		subject{name: kubeRouter, peer: true, argv: func(kubeconfig, _ string) []string {
			return []string{o.peers[kubeRouter], "--kubeconfig", kubeconfig, "--hostname-override", nodeName, "--run-router=false", "--run-service-proxy=false",
				"--run-firewall", "--service-cluster-ip-range", serviceCIDR.String()}
		}},
		subject{name: networkPolicies, peer: true, needs: "queue num 100", argv: func(kubeconfig, _ string) []string {
			return []string{o.peers[networkPolicies], "--kubeconfig", kubeconfig, "--hostname-override", nodeName, "--fail-open=false", "--disable-nri"}
		}})
}

func names() (out []string) {
	for _, s := range subjects(&options{}) {
		out = append(out, s.name)
	}
	return out
}

// kernel says what this kernel lacks for a subject.
func (s subject) kernel() error {
	if s.needs == "" {
		return nil
	}
	ns, err := netns.New()
	if err != nil {
		return err
	}
	defer ns.Close()
	return ns.Do(func() error {
		rule := "add table ip t; add chain ip t f; add rule ip t f " + s.needs
		if _, err := exec.Command("nft", rule).Output(); err != nil {
			return fmt.Errorf("the kernel takes no rule %q", s.needs)
		}
		return nil
	})
}

// start starts a subject in a namespace.
func (s subject) start(ns *netns.NS, url, dir string) (*process.Process, error) {
	conf, err := process.Kubeconfig(dir, url)
	if err != nil {
		return nil, err
	}
	return process.Start(ns, dir, s.argv(conf, dir)...)
}
