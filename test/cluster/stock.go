package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"
)

// What `up --network` takes.
const (
	networkBraid = "braid"
	networkStock = "stock"
)

// stockDNS is the one of the stock programs that test images hold too: agnhost's has a CoreDNS inside.
var stockDNS = program{name: "coredns-" + coreDNSVersion, module: "coredns", pkg: "github.com/coredns/coredns", ldflags: "-s -w", cold: 2 * time.Minute}

// policyPeers are in no cluster: they are what policy is compared with.
var policyPeers = []program{
	{name: "kube-network-policies-" + networkPoliciesVersion, module: "networkpolicies",
		pkg: "sigs.k8s.io/kube-network-policies/cmd/kube-network-policies/standard", ldflags: "-s -w", cold: usualCold},
	{name: "kube-router-" + kubeRouterVersion, module: "kuberouter", pkg: ".", ldflags: "-s -w", cold: usualCold},
}

// stockPlugins are the reference CNI plugins, by their folder in the module.
var stockPlugins = map[string]string{"bridge": "main", "host-local": "ipam", "loopback": "main", "portmap": "meta"}

// stockPrograms is what `up --network stock` needs beyond programs.
func stockPrograms() []program {
	out := []program{{name: "kube-proxy", module: "kubernetes", pkg: "k8s.io/kubernetes/cmd/kube-proxy", ldflags: kubeLD}}
	const pkg = "github.com/containernetworking/plugins/"
	for name, dir := range stockPlugins {
		out = append(out, program{name: name + "-" + pluginsVersion, module: "cni", pkg: pkg + "plugins/" + dir + "/" + name,
			ldflags: "-s -w -X " + pkg + "pkg/utils/buildversion.BuildVersion=" + pluginsVersion})
	}
	return out
}

// stockDNSManifest is CoreDNS as kubeadm installs it.
//
//go:embed stock.yaml
var stockDNSManifest string

// stock installs what Braid stands beside: the reference CNI plugins with routes between the nodes' pod
// addresses, kube-proxy, and the stock CoreDNS.
func (o *options) stock(ctx context.Context) error {
	pods, err := o.podCIDRs(ctx)
	if err != nil {
		return err
	}
	if err := o.everyNode(func(i int) error { return o.stockNode(ctx, i, pods) }); err != nil {
		return err
	}
	dns := o.families()[0].dns
	text := strings.NewReplacer("DNS_IMAGE", stockDNSImage, "DNS_ADDRESS", dns.String()).Replace(stockDNSManifest)
	if err := o.apply(ctx, text); err != nil {
		return err
	}
	_, err = o.kubectl(ctx, "rollout", "status", "-n", "kube-system", "deployment/coredns", "--timeout=180s")
	return err
}

// podCIDRs returns every node's pod addresses; the first is node 1's.
func (o *options) podCIDRs(ctx context.Context) ([][]netip.Prefix, error) {
	out := make([][]netip.Prefix, o.Nodes)
	for i := range out {
		text, err := o.kubectl(ctx, "get", "node", nodeName(i+1), "-o", "jsonpath={.spec.podCIDRs[*]}")
		if err != nil {
			return nil, err
		}
		for _, s := range strings.Fields(text) {
			p, err := netip.ParsePrefix(s)
			if err != nil {
				return nil, fmt.Errorf("node %s: spec.podCIDRs: %w", nodeName(i+1), err)
			}
			out[i] = append(out[i], p)
		}
	}
	return out, nil
}

func (o *options) stockNode(ctx context.Context, i int, pods [][]netip.Prefix) error {
	name := nodeName(i)
	s, err := openSpace(o.nsName(name))
	if err != nil {
		return err
	}
	defer s.close()
	for peer, prefixes := range pods {
		for _, p := range prefixes {
			for _, f := range o.families() {
				if peer+1 == i || f.control.Is4() != p.Addr().Is4() {
					continue
				}
				if err := s.route(p, f.node(peer+1)); err != nil {
					return err
				}
			}
		}
	}
	for plugin := range stockPlugins {
		if err := copyFile(o.bin(plugin+"-"+pluginsVersion), o.path(name, "opt/cni/bin", plugin), 0o755); err != nil {
			return err
		}
	}
	if err := copyFile(o.pki("kube-proxy.kubeconfig"), o.path(name, "var/lib/kubelet/kube-proxy.kubeconfig"), 0o600); err != nil {
		return err
	}
	if err := start(ctx, o, name, o.kubeProxy(name)); err != nil {
		return err
	}
	conf, err := stockConf(pods[i-1])
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.path(name, "var/lib/kubelet/10-stock.conflist"), conf, 0o644); err != nil {
		return err
	}
	// The node's /etc is an overlay: only the node may change it.
	_, err = o.output(ctx, name, true, "sh", "-euc", "mkdir -p /etc/cni/net.d; cp /var/lib/kubelet/10-stock.conflist /etc/cni/net.d/")
	return err
}

// stockConf is a node's CNI configuration.
func stockConf(pods []netip.Prefix) ([]byte, error) {
	var ranges [][]map[string]string
	var routes []map[string]string
	for _, p := range pods {
		ranges = append(ranges, []map[string]string{{"subnet": p.String()}})
		routes = append(routes, map[string]string{"dst": netip.PrefixFrom(unspecified(p.Addr()), 0).String()})
	}
	return json.MarshalIndent(map[string]any{
		"cniVersion": "1.0.0", "name": "stock", "plugins": []map[string]any{
			{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "mtu": 1500,
				"ipam": map[string]any{"type": "host-local", "ranges": ranges, "routes": routes},
			},
			{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}},
		},
	}, "", "  ")
}

func (o *options) kubeProxy(node string) job {
	return job{Name: "kube-proxy", Argv: []string{
		nodeBin + "/kube-proxy", "--kubeconfig=/var/lib/kubelet/kube-proxy.kubeconfig", "--hostname-override=" + node,
		"--proxy-mode=nftables", "--cluster-cidr=" + o.each(func(f family) string { return f.pods.String() }),
		// The size of conntrack's table belongs to the machine; a namespace may not set it.
		"--conntrack-max-per-core=0", "--v=2",
	}}
}
