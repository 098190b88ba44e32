package kernel

import (
	"fmt"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

const balanced = `---
apiVersion: v1
kind: Service
metadata: {name: front}
spec: {clusterIP: 10.96.0.81, type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30500, ports: [{port: 80, nodePort: 30081}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: front-1, labels: {kubernetes.io/service-name: front}}
addressType: IPv4
ports: [{port: 8080, name: ""}]
endpoints: [{addresses: [10.244.1.5], nodeName: NODE}]
`

// TestWhatOthersAskOfKubeProxy asks the real agent what load balancers, monitoring and upstream's own
// tests ask of kube-proxy.
func TestWhatOthersAskOfKubeProxy(t *testing.T) {
	n := newNode(t)
	on := func(node string) string { return cluster + strings.Replace(balanced, "NODE", node, 1) }
	n.write(t, on("n1"))
	n.agent(t, "--service-mode", "nftables", "--healthz-bind-address", ":10256")
	want := func(url string, parts ...string) {
		t.Helper()
		nstest.Wait(t, url, func() error {
			out, err := n.Output("curl", "-gsi", "--max-time", "5", url)
			if err != nil {
				return err
			}
			for _, p := range parts {
				if !strings.Contains(out, p) {
					return fmt.Errorf("no %q in\n%s", p, out)
				}
			}
			return nil
		})
	}
	want("http://127.0.0.1:10256/healthz", "200 OK", `"lastUpdated"`, `"nodeEligible":true`)
	want("http://[::1]:10256/livez", "200 OK", `"currentTime"`)
	want("http://127.0.0.1:10249/proxyMode", "200 OK", "nftables")
	want("http://127.0.0.1:10249/configz", "200 OK", `"conntrack-tcp-timeout-close-wait":"1h0m0s"`)
	want("http://127.0.0.1:10249/metrics/slis", "200 OK", `kubernetes_healthcheck{name="services",type="readyz"} 1`)
	want("http://127.0.0.1:30500/", "200 OK", "X-Load-Balancing-Endpoint-Weight: 1", `"localEndpoints":1`, `"namespace":"default","name":"front"`)
	want("http://127.0.0.1:10249/metrics", `kubeproxy_sync_proxy_rules_service_changes_pending 0`,
		`kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv4"}`, `kubeproxy_proxy_healthz_total{code="200"}`,
		`kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family="IPv6"}`, `kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family="IPv4"} 0`)
	if got := strings.TrimSpace(n.Exec(t, "cat", "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait")); got != "3600" {
		t.Errorf("connections that one side has closed are forgotten after %s seconds, want 3600", got)
	}
	n.write(t, on("n2"))
	want("http://127.0.0.1:30500/", "503 Service Unavailable", "X-Load-Balancing-Endpoint-Weight: 0")
	n.write(t, strings.Replace(on("n2"), "{name: n1}\nspec: {", "{name: n1}\nspec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}], ", 1))
	want("http://127.0.0.1:10256/healthz", "503 Service Unavailable", `"nodeEligible":false`)
	want("http://127.0.0.1:10249/livez", "200 OK")
}

// TestRuleCounts: in mode iptables the agent says how many rules it has in the kernel, and how many the last change wrote.
func TestRuleCounts(t *testing.T) {
	n := newNode(t)
	n.agent(t, "--service-mode", "iptables")
	metric := func(name, table string) (v int) {
		t.Helper()
		line := fmt.Sprintf("%s{ip_family=\"IPv4\",table=%q} ", name, table)
		_, rest, ok := strings.Cut(n.Exec(t, "curl", "-s", "http://127.0.0.1:10249/metrics"), line)
		if _, err := fmt.Sscan(rest, &v); !ok || err != nil {
			t.Fatalf("no metric %s: %v", line, err)
		}
		return v
	}
	for _, table := range []string{"nat", "filter"} {
		if got, want := metric("kubeproxy_sync_proxy_rules_iptables_total", table), strings.Count(n.Exec(t, "iptables-save", "-t", table), "\n-A BRAID-"); got != want {
			t.Errorf("%d rules in table %s, the kernel has %d", got, table, want)
		}
	}
	before := metric("kubeproxy_sync_proxy_rules_iptables_total", "nat")
	n.write(t, strings.Replace(cluster, ", {addresses: [10.244.2.5]}", "", 1))
	nstest.Wait(t, "a rule less for each of two frontends at least", func() error {
		if now := metric("kubeproxy_sync_proxy_rules_iptables_total", "nat"); now > before-2 {
			return fmt.Errorf("%d rules, %d before", now, before)
		}
		return nil
	})
	if all, last := metric("kubeproxy_sync_proxy_rules_iptables_total", "nat"), metric("kubeproxy_sync_proxy_rules_iptables_last", "nat"); last == 0 || last >= all {
		t.Errorf("the last change was of %d rules of %d", last, all)
	}
	want := strings.Count(n.Exec(t, "iptables-save", "-t", "nat"), "\n-A BRAID-")
	if got := metric("kubeproxy_sync_proxy_rules_iptables_total", "nat"); got != want {
		t.Errorf("%d rules in table nat after a change, the kernel has %d", got, want)
	}
}
