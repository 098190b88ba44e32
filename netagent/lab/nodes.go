package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

const (
	agentProgram, dnsProgram = "netagent", "coredns"

	agentHTTP = "127.0.0.1:10249"
	dnsName   = "kube-dns"
	dnsZone   = "cluster.local"
)

// makePrograms describes what runs on every node: the agent and CoreDNS, as DaemonSets with
// hostNetwork would run them.
func (d *daemon) makePrograms() []*program {
	var agents, servers []*program
	for _, n := range d.o.nodes() {
		ns := nsPath(d.p.nodeNS(n.name))
		agents = append(agents, d.program(&n, agentProgram, agentReady(ns), d.agentArgs(&n), nil))
		servers = append(servers, d.program(&n, dnsProgram, d.dnsReady(ns, &n),
			[]string{d.o.bin(dnsProgram), "-conf", d.p.corefile()}, []string{"BRAID_MANIFESTS=" + d.p.cluster()}))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.programs = append(agents, servers...)
	return d.programs
}

func (d *daemon) agentArgs(n *node) []string {
	return []string{
		d.o.bin("netagent"), "run", "--node", n.name, "--manifests", d.p.cluster(),
		"--run-dir", d.p.node(n.name, "run"), "--state-dir", d.p.node(n.name, "state"),
		"--cni-conf-dir", d.p.node(n.name, "cni"), "--config", d.p.agentYAML(),
	}
}

func (d *daemon) program(n *node, name string, ask func(context.Context) error, argv, env []string) *program {
	return &program{
		node: n.name, name: name, log: d.p.log(n.name, name), self: d.o.bin("netagent"), ask: ask,
		changed: d.bump, logger: d.log, why: "not started yet", since: d.o.Created,
		entry: &entry{
			netns: nsPath(d.p.nodeNS(n.name)), hostname: n.name, binds: d.p.etc(d.p.resolv(), ""),
			argv: argv, env: append(os.Environ(), env...),
		},
	}
}

// agentReady asks the agent's /readyz, which says what is missing.
func agentReady(ns string) func(context.Context) error {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // a connection kept would outlive the agent it was made to
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialNS(ctx, ns, network, addr)
		},
	}}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+agentHTTP+"/readyz", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return fmt.Errorf("its health port does not answer: %w", err)
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return nil
		}
		var body struct {
			Problems []string `json:"problems"`
		}
		if json.NewDecoder(resp.Body).Decode(&body) != nil || len(body.Problems) == 0 {
			return fmt.Errorf("/readyz answers %s", resp.Status)
		}
		return errors.New(strings.Join(body.Problems, "; "))
	}
}

// dnsReady asks a node's CoreDNS for the cluster's own resolver by name, which it knows only once
// it has read the cluster.
func (d *daemon) dnsReady(ns string, n *node) func(context.Context) error {
	f := d.o.families()[0]
	server := netip.AddrPortFrom(n.ips[0], 53).String()
	question := new(dns.Msg)
	qtype := dns.TypeA
	if f.dns.Is6() {
		qtype = dns.TypeAAAA
	}
	question.SetQuestion(dnsName+".kube-system.svc."+dnsZone+".", qtype)
	return func(ctx context.Context) error {
		conn, err := dialNS(ctx, ns, "udp", server)
		if err != nil {
			return err
		}
		defer conn.Close()
		if deadline, ok := ctx.Deadline(); ok {
			_ = conn.SetDeadline(deadline)
		}
		c := &dns.Conn{Conn: conn}
		if err := c.WriteMsg(question.Copy()); err != nil {
			return fmt.Errorf("it does not answer: %w", err)
		}
		m, err := c.ReadMsg()
		if err != nil {
			return fmt.Errorf("it does not answer: %w", err)
		}
		if len(m.Answer) == 0 {
			return fmt.Errorf("it answers %s for %s", dns.RcodeToString[m.Rcode], question.Question[0].Name)
		}
		return nil
	}
}

// dnsObjects are the Service kube-dns and its EndpointSlices, one endpoint per node: CoreDNS runs on
// the nodes' own addresses, and each node's clients prefer their own. ready says whose CoreDNS
// answers.
func dnsObjects(o *Options, ready map[string]bool) []runtime.Object {
	labels := map[string]string{"k8s-app": dnsName}
	created := metav1.NewTime(o.Created)
	policy, near := corev1.IPFamilyPolicySingleStack, corev1.ServiceTrafficDistributionPreferSameNode
	svc := &corev1.Service{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Service"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: dnsName, Labels: labels, CreationTimestamp: created},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, IPFamilyPolicy: &policy, TrafficDistribution: &near,
			Ports: []corev1.ServicePort{
				{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}, {Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53},
			}},
	}
	objects := []runtime.Object{svc}
	for i, f := range o.families() {
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, f.dns.String())
		svc.Spec.IPFamilies = append(svc.Spec.IPFamilies, corev1.IPFamily(f.ip))
		objects = append(objects, dnsSlice(o, i, ready))
	}
	if svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]; len(svc.Spec.ClusterIPs) > 1 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	return objects
}

// dnsSlice lists the nodes' CoreDNS in the lab's i-th address family.
func dnsSlice(o *Options, i int, ready map[string]bool) *discoveryv1.EndpointSlice {
	f := o.families()[i]
	s := &discoveryv1.EndpointSlice{
		TypeMeta: metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "kube-system", Name: dnsName + "-" + strings.ToLower(f.ip), CreationTimestamp: metav1.NewTime(o.Created),
			Labels: map[string]string{discoveryv1.LabelServiceName: dnsName, discoveryv1.LabelManagedBy: "lab.braid.network"},
		},
		AddressType: discoveryv1.AddressType(f.ip),
	}
	for _, p := range []struct {
		name string
		of   corev1.Protocol
	}{{"dns", corev1.ProtocolUDP}, {"dns-tcp", corev1.ProtocolTCP}} {
		port := int32(53)
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p.name, Protocol: &p.of, Port: &port})
	}
	for _, n := range o.nodes() {
		isReady, ends := ready[n.name], false
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{n.ips[i].String()}, NodeName: &n.name,
			Conditions: discoveryv1.EndpointConditions{Ready: &isReady, Serving: &isReady, Terminating: &ends},
			Hints:      &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: n.name}}},
		})
	}
	return s
}

// followDNS keeps the endpoints of kube-dns true to which CoreDNS answers.
func (d *daemon) followDNS(ctx context.Context) {
	var told []string
	for {
		next := d.next()
		ready, names := map[string]bool{}, []string{}
		for _, p := range d.programs {
			if p.name == dnsProgram && p.status().Ready {
				ready[p.node] = true
				names = append(names, p.node)
			}
		}
		if !slices.Equal(told, names) {
			if err := d.ctl.AddObjects(dnsObjects(d.o, ready)...); err != nil {
				d.log.Error("update endpoints of kube-dns", "err", err)
			}
			told = names
		}
		select {
		case <-ctx.Done():
			return
		case <-next:
		}
	}
}
