package main

import (
	"os"
	"strings"
	"testing"
)

// TestVersionsAgree compares what the cache folder is named after with what the modules in build/ pin.
func TestVersionsAgree(t *testing.T) {
	for module, want := range map[string][]string{
		"kubernetes": {"k8s.io/kubernetes " + kubernetesVersion, "k8s.io/client-go v0." + strings.TrimPrefix(kubernetesVersion, "v1."), "github.com/onsi/ginkgo/v2 " + ginkgoVersion},
		"etcd":       {"go.etcd.io/etcd/server/v3 " + etcdVersion},
		"containerd": {"github.com/containerd/containerd/v2 " + containerdVersion},
		"coredns":    {"github.com/coredns/coredns " + coreDNSVersion},
		"cni":        {"github.com/containernetworking/plugins " + pluginsVersion},

		"networkpolicies": {"sigs.k8s.io/kube-network-policies " + networkPoliciesVersion},
		"kuberouter":      {"github.com/cloudnativelabs/kube-router/v2 " + kubeRouterVersion},
	} {
		data, err := os.ReadFile("build/" + module + "/go.mod")
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(string(data), w+"\n") {
				t.Errorf("build/%s/go.mod does not say %q", module, w)
			}
		}
	}
}
