package deploy

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/miekg/dns"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// query asks the CoreDNS of the box and returns the data of the answer's records, or the answer's code.
func (b *box) query(t *testing.T, network, name string, qtype uint16) string {
	t.Helper()
	var m *dns.Msg
	b.ns.Run(t, func() (err error) {
		m, _, err = (&dns.Client{Net: network}).Exchange(new(dns.Msg).SetQuestion(name, qtype), "127.0.0.1:53")
		return err
	})
	if len(m.Answer) == 0 {
		return dns.RcodeToString[m.Rcode]
	}
	var out []string
	for _, r := range m.Answer {
		out = append(out, strings.TrimPrefix(r.String(), r.Header().String()))
	}
	return strings.Join(out, " ")
}

// startCoreDNS starts it with the ConfigMap as it is and waits until it is ready.
func (b *box) startCoreDNS(t *testing.T) (log *output, stop func() error) {
	t.Helper()
	pod := &find[appsv1.DaemonSet](t, b.objects, "coredns").Spec.Template.Spec
	log, stop = b.start(t, pod, "coredns")
	c := &pod.Containers[0]
	nstest.Wait(t, "CoreDNS to be ready", func() error { return b.probe(c, c.ReadinessProbe) })
	return log, stop
}

// outside runs a DNS server with some records on an address of the node.
func (b *box) outside(t *testing.T, addr string, records ...string) {
	t.Helper()
	zone := map[dns.Question]dns.RR{}
	for _, text := range records {
		rr, err := dns.NewRR(text)
		if err != nil {
			t.Fatal(err)
		}
		zone[dns.Question{Name: rr.Header().Name, Qtype: rr.Header().Rrtype, Qclass: dns.ClassINET}] = rr
	}
	server := &dns.Server{Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if rr, ok := zone[q.Question[0]]; ok {
			m.Answer = append(m.Answer, rr)
		} else {
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m) // a client that is gone asks again
	})}
	b.ns.Run(t, func() (err error) {
		server.PacketConn, err = net.ListenPacket("udp", addr)
		return err
	})
	done := make(chan error, 1)
	go func() { done <- server.ActivateAndServe() }()
	t.Cleanup(func() {
		if err := errors.Join(server.Shutdown(), <-done); err != nil {
			t.Error(err)
		}
	})
}

// upstream is where these tests have CoreDNS forward to.
const upstream = "192.0.2.1:5353"

// A ConfigMap that is changed in the cluster is taken by the running CoreDNS, which goes on answering.
func TestCorefileChange(t *testing.T) {
	requireBinaries(t)
	b := newBox(t)
	b.likeAPod(t)
	config := find[corev1.ConfigMap](t, b.objects, "coredns")
	if !strings.Contains(config.Data["Corefile"], "    reload\n") {
		t.Fatalf("the Corefile does not reload:\n%s", config.Data["Corefile"])
	}
	b.outside(t, upstream)
	config.Data["Corefile"] = strings.NewReplacer("    reload\n", "    reload 2s 1s\n", // as often as it can
		"forward . /etc/resolv.conf", "forward . "+upstream).Replace(config.Data["Corefile"])
	log, _ := b.startCoreDNS(t)
	config.Data["Corefile"] = strings.Replace(config.Data["Corefile"], "    loop\n",
		"    hosts {\n            192.0.2.9 added.test\n            fallthrough\n        }\n        loop\n", 1)
	b.project(t, "coredns")
	nstest.Wait(t, "the new Corefile to be in force", func() error {
		if got := b.query(t, "udp", "web.default.svc.cluster.local.", dns.TypeA); got != "10.96.7.7" {
			t.Errorf("while it reloads, web is %s", got)
		}
		if got := b.query(t, "udp", "added.test.", dns.TypeA); got != "192.0.2.9" {
			return fmt.Errorf("added.test is %s\n%s", got, log)
		}
		return nil
	})
}

// What upstream's specs "DNS configMap nameserver" do: they write a Corefile of two server blocks, without
// reload, into ConfigMap coredns, delete the pods, and ask the new ones.
func TestCorefileOfUpstreamsSpecs(t *testing.T) {
	requireBinaries(t)
	b := newBox(t)
	b.likeAPod(t)
	_, stop := b.startCoreDNS(t)
	if err := stop(); err != nil {
		t.Error(err)
	}
	b.outside(t, upstream, "abc.acme.local. A 1.1.1.1", "widget.local. A 3.3.3.3", "foo.example.com. A 192.0.2.123",
		"123.2.0.192.in-addr.arpa. PTR my.test.")
	find[corev1.ConfigMap](t, b.objects, "coredns").Data = map[string]string{"Corefile": `.:53 {
        health
        ready
        kubernetes cluster.local in-addr.arpa ip6.arpa {
           pods insecure
           fallthrough in-addr.arpa ip6.arpa
           ttl 30
        }
        forward . ` + upstream + `
    }
     acme.local:53 {
       forward . ` + upstream + `
    }`}
	b.startCoreDNS(t)
	for _, q := range []struct {
		name  string
		qtype uint16
		want  string
	}{
		{"abc.acme.local.", dns.TypeA, "1.1.1.1"},
		{"widget.local.", dns.TypeA, "3.3.3.3"},
		{"123.2.0.192.in-addr.arpa.", dns.TypePTR, "my.test."},
		{"elsewhere.default.svc.cluster.local.", dns.TypeA, "foo.example.com. 192.0.2.123"},
		{"web.default.svc.cluster.local.", dns.TypeA, "10.96.7.7"},
	} {
		if got := b.query(t, "udp", q.name, q.qtype); got != q.want {
			t.Errorf("%s is %s, want %s", q.name, got, q.want)
		}
	}
}
