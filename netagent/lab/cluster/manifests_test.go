package cluster

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

const root = "../../.."

// shared applies one of the manifests that others wrote.
func shared(t *testing.T, name string) (*playground, Report) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, "../shared/data", name))
	if os.IsNotExist(err) {
		t.Skip("the folder of other people's manifests is not there")
	}
	if err != nil {
		t.Fatal(err)
	}
	p := newPlayground(t, 3)
	r, err := p.Apply(t.Context(), name, data)
	if err != nil {
		t.Fatal(err)
	}
	p.settle(t)
	return p, r
}

// owners counts the pods of each owner.
func (p *playground) owners() (out []string) {
	count := map[string]int{}
	for _, s := range p.Pods() {
		count[s.Owner]++
	}
	for owner, n := range count {
		out = append(out, fmt.Sprintf("%s %d", owner, n))
	}
	slices.Sort(out)
	return out
}

// endpointCounts prints for each service how many ready endpoints its slices list, and their ports.
func (p *playground) endpointCounts(t *testing.T, ns string) (out []string) {
	t.Helper()
	for _, f := range p.files(t, "service") {
		s := read[corev1.Service](t, p, f)
		if s.Namespace != ns {
			continue
		}
		ports := map[string]int{}
		for _, e := range p.endpoints(t, ns, s.Name) {
			addr, port, _ := strings.Cut(e, " port ")
			if strings.Contains(addr, " ready") {
				ports[port]++
			}
		}
		line := s.Name
		for _, port := range slices.Sorted(maps.Keys(ports)) {
			line += fmt.Sprintf(" %d×%s", ports[port], port)
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}

func TestGuestbook(t *testing.T) {
	p, r := shared(t, "guestbook.yaml")
	equal(t, "pods", p.owners(), []string{"Deployment frontend 3", "Deployment redis-master 1", "Deployment redis-replica 2"})
	equal(t, "endpoints", p.endpointCounts(t, "default"), []string{"frontend 3×80/", "redis-master 1×6379/", "redis-replica 2×6379/"})
	if s := read[corev1.Service](t, p, "service.default.frontend.yaml"); s.Spec.Ports[0].NodePort < 30000 {
		t.Errorf("frontend has node port %d", s.Spec.Ports[0].NodePort)
	}
	if len(r.Ignored) != 0 || len(r.Warnings) != 0 {
		t.Errorf("report: %q %q", r.Ignored, r.Warnings)
	}
}

func TestCassandra(t *testing.T) {
	p, r := shared(t, "cassandra.yaml")
	equal(t, "pods", p.podNames(), []string{"cassandra-0", "cassandra-1", "cassandra-2"})
	equal(t, "endpoints", p.endpoints(t, "default", "cassandra"), []string{
		"10.244.1.2 ready serving host=cassandra-0 port 9042/", "10.244.2.2 ready serving host=cassandra-1 port 9042/",
		"10.244.3.2 ready serving host=cassandra-2 port 9042/"})
	equal(t, "ignored", r.Ignored, []string{"StorageClass (1)"})
	s := read[discoveryv1.EndpointSlice](t, p, p.files(t, "endpointslice")[0])
	if _, headless := s.Labels[corev1.IsHeadlessService]; !headless || s.Labels[discoveryv1.LabelManagedBy] != sliceController {
		t.Errorf("labels of the slice: %v", s.Labels)
	}
	var ports []string
	for _, port := range p.pod(t, "cassandra-1").Ports {
		ports = append(ports, fmt.Sprintf("%s %d", port.Name, port.Number))
	}
	equal(t, "ports", ports, []string{"intra-node 7000", "tls-intra-node 7001", "jmx 7199", "cql 9042"})
}

func TestOnlineBoutique(t *testing.T) {
	p, r := shared(t, "online-boutique.yaml")
	equal(t, "endpoints", p.endpointCounts(t, "default"), []string{
		"adservice 1×9555/grpc", "cartservice 1×7070/grpc", "checkoutservice 1×5050/grpc", "currencyservice 1×7000/grpc",
		"emailservice 1×8080/grpc", "frontend 1×8080/http", "frontend-external 1×8080/http", "paymentservice 1×50051/grpc",
		"productcatalogservice 1×3550/grpc", "recommendationservice 1×8080/grpc", "redis-cart 1×6379/tcp-redis", "shippingservice 1×50051/grpc"})
	if n := len(p.Pods()); n != 12 {
		t.Errorf("%d pods, want 12: %v", n, p.owners())
	}
	for _, s := range p.Pods() {
		if s.Owner == "Deployment loadgenerator" && len(s.Ports) != 0 {
			t.Errorf("the load generator serves %v", s.Ports)
		}
	}
	equal(t, "ignored", r.Ignored, []string{"ServiceAccount (11)"})
}

// The example must work whatever families the playground has.
func TestExample(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(root, "examples/shop.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for name, cidrs := range map[string][]netip.Prefix{"dual": {cidr4, cidr6}, "v4": {cidr4}, "v6": {cidr6}} {
		t.Run(name, func(t *testing.T) {
			p := newPlayground(t, 3, func(c *Config) { c.ServiceCIDRs = cidrs })
			r, err := p.Apply(t.Context(), "shop.yaml", data)
			if err != nil || len(r.Warnings) > 0 || len(r.Ignored) > 0 {
				t.Fatalf("%v, %+v", err, r)
			}
			p.settle(t)
			checkExample(t, p, len(cidrs))
		})
	}
}

func checkExample(t *testing.T, p *playground, families int) {
	t.Helper()
	pods := p.Pods()
	if len(pods) > 16 {
		t.Errorf("%d pods: too many for a quick start", len(pods))
	}
	web := map[string]bool{}
	for _, s := range pods {
		if s.Owner == "Deployment web" {
			web[s.Node] = true
		}
	}
	if len(web) != 3 || p.pod(t, "client-a").Node != "n1" || p.pod(t, "client-b").Node != "n1" {
		t.Errorf("the pods are not where the example says: %+v", pods)
	}
	kinds := map[string]bool{}
	for _, f := range p.files(t, "service") {
		s := read[corev1.Service](t, p, f)
		if n := len(s.Spec.IPFamilies); n > families {
			t.Errorf("%s has families %v", s.Name, s.Spec.IPFamilies)
		}
		kinds[string(s.Spec.Type)] = true
		kinds["headless"] = kinds["headless"] || s.Spec.ClusterIP == "None"
		kinds["without selector"] = kinds["without selector"] || (len(s.Spec.Selector) == 0 && s.Spec.Type == corev1.ServiceTypeClusterIP)
		for _, port := range s.Spec.Ports {
			kinds[fmt.Sprintf("%s %s", s.Spec.Type, port.Protocol)] = true
		}
	}
	for _, k := range []string{"ClusterIP TCP", "ClusterIP UDP", "NodePort TCP", "NodePort UDP", "LoadBalancer", "ExternalName", "headless", "without selector"} {
		if !kinds[k] {
			t.Errorf("no service of kind %q", k)
		}
	}
	per := func(n int) int { return n * families }
	equal(t, "endpoints", p.endpointCounts(t, "shop"), []string{
		fmt.Sprintf("cart %d×7071/api", per(1)), fmt.Sprintf("clock %d×1123/time", per(2)), fmt.Sprintf("clock-public %d×1123/", per(2)),
		fmt.Sprintf("db %d×5432/sql", per(3)), "log 3×514/syslog 3×514/syslog-tcp", "partner", "payment", "warehouse",
		fmt.Sprintf("web %d×8080/http %d×9090/metrics", per(3), per(3)), fmt.Sprintf("web-cloud %d×8080/http", per(3)), "web-public 3×8080/"})
	if n := len(p.files(t, "networkpolicy")); n != 2 {
		t.Errorf("%d policies", n)
	}
	readBack(t, p)
	if cart := p.pod(t, p.ownedBy("Deployment cart")).Ports; len(cart) != 1 || cart[0].Number != 7071 {
		t.Errorf("the cart serves %v, want the undeclared port its service targets", cart)
	}
}

func (p *playground) ownedBy(owner string) string {
	for _, s := range p.Pods() {
		if s.Owner == owner {
			return s.Name
		}
	}
	return ""
}
