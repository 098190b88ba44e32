package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
)

// dnsserver.Directives is upstream's list as long as main has not run.
func TestDirectivesAreUpstreams(t *testing.T) {
	theirs := slices.DeleteFunc(slices.Clone(directives), func(name string) bool { return name == "fastpath" })
	if !slices.Equal(theirs, dnsserver.Directives) {
		t.Errorf("the order of plugins differs from that of the CoreDNS we link:\n got %q\nwant %q", theirs, dnsserver.Directives)
	}
}

func linkedPlugins() []string {
	linked := caddy.ListPlugins()["others"]
	for i, name := range linked {
		linked[i] = strings.TrimPrefix(name, "dns.")
	}
	return linked
}

// A plugin that is linked but has no place in the order cannot be used.
func TestLinkedPluginsHaveAPlace(t *testing.T) {
	linked := linkedPlugins()
	for _, name := range linked {
		if !slices.Contains(directives, name) {
			t.Errorf("plugin %q is linked but not in directives", name)
		}
	}
	var missing []string
	for _, name := range directives {
		if !slices.Contains(linked, name) {
			missing = append(missing, name)
		}
	}
	want := []string{"trace", "route53", "azure", "clouddns", "nomad"}
	if !slices.Equal(missing, want) {
		t.Errorf("not linked: %q, want only %q", missing, want)
	}
}

func TestInTreeKubernetesIsNotLinked(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatalf("go list -deps: %v", err)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, "github.com/braidnet/braid/plugin/kubernetes") {
		t.Error("our kubernetes plugin is not linked")
	}
	for _, d := range deps {
		if strings.HasPrefix(d, "github.com/coredns/coredns/plugin/kubernetes") || d == "github.com/coredns/coredns/plugin/k8s_external" {
			t.Errorf("%s is linked: it takes the word kubernetes, and the program would not start", d)
		}
	}
}
