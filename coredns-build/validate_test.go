//go:build !minimal

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// What the distributions of Kubernetes write must be good, on a machine that is not of a cluster.
func TestCorefilesOfTheFieldAreValid(t *testing.T) {
	files, err := filepath.Glob("testdata/Corefile.*")
	if err != nil || len(files) < 6 {
		t.Fatalf("found %q, %v", files, err)
	}
	for _, file := range append(files, "../Corefile.example") {
		if strings.HasSuffix(file, ".bad") {
			continue
		}
		out, err := exec.Command(build(t), "-validate", "-conf", file).CombinedOutput()
		if err != nil || !strings.Contains(string(out), file+": no problems in ") {
			t.Errorf("%s: %v\n%s", file, err, out)
		}
	}
}

func TestEveryMistakeIsFound(t *testing.T) {
	out, err := exec.Command(build(t), "-validate", "-conf", "testdata/Corefile.bad").CombinedOutput()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 {
		t.Errorf("it ended with %v, want exit code 1", err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	var got []string
	for _, l := range lines {
		if !strings.HasPrefix(l, "[WARNING]") {
			got = append(got, l)
		}
	}
	want := []string{
		"testdata/Corefile.bad:4: healthy: there is no such plugin",
		`testdata/Corefile.bad:6: plugin/kubernetes: pods: found "sometimes", want disabled, insecure or verified`,
		`testdata/Corefile.bad:7: plugin/kubernetes: ttl: found "4000", want a number of seconds from 0 to 3600`,
		`testdata/Corefile.bad:10: plugin/kubernetes: namespaces: found "", want one or more namespaces`,
		`testdata/Corefile.bad:13: plugin/forward: strconv.Atoi: parsing "many": invalid syntax`,
		"testdata/Corefile.bad:15: route53: this program has no such plugin",
		"testdata/Corefile.bad:17: plugin/cache: ",
		`testdata/Corefile.bad:20: server block "example.org:99999": `,
		"testdata/Corefile.bad:21: k8s_external: there is no kubernetes plugin in this server block to take addresses from; add one",
		`testdata/Corefile.bad:22: plugin/k8s_external: ttl: found "-1", want a number of seconds from 0 to 3600`,
		`testdata/Corefile.bad:25: server block ".:53": the one at line 2 serves this already; put both together, bind them to different addresses, or tell them apart by view`,
		"testdata/Corefile.bad: 11 problems",
	}
	for i, w := range want {
		if i >= len(got) || !strings.HasPrefix(got[i], w) {
			t.Fatalf("line %d: want %s\ngot\n%s", i+1, w, strings.Join(got, "\n"))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d lines, want %d:\n%s", len(got), len(want), out)
	}
}

func TestValidateOddFiles(t *testing.T) {
	snippets := filepath.Join(t.TempDir(), "Corefile")
	write(t, snippets, "(common) {\n    errors\n    ttl 5\n}\n. {\n    import common\n    kubernetes 10.0.0.0/8\n}\n")
	empty := filepath.Join(t.TempDir(), "Corefile")
	write(t, empty, "")
	unclosed := filepath.Join(t.TempDir(), "Corefile")
	write(t, unclosed, ". {\n    kubernetes {\n        pods insecure\n")
	for _, tc := range []struct {
		file string
		code int
		want []string
	}{
		{snippets, 1, []string{snippets + ":3: ttl: there is no such plugin", snippets + ":7: plugin/kubernetes: zones: found only reverse zones"}},
		{empty, 0, []string{"no problems in 0 server blocks"}},
		{unclosed, 1, []string{unclosed + ":"}},
		{"/nonexistent/Corefile", 1, []string{"the Corefile cannot be read"}},
	} {
		var out strings.Builder
		if code := validateFile(tc.file, &out); code != tc.code {
			t.Errorf("%s: exit code %d, want %d", tc.file, code, tc.code)
		}
		for _, w := range tc.want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%s: no %q in\n%s", tc.file, w, out.String())
			}
		}
	}
}

// Nothing that is read from a file may crash the check; what is found has a place in the file.
func FuzzValidate(f *testing.F) {
	files, err := filepath.Glob("testdata/Corefile.*")
	if err != nil {
		f.Fatal(err)
	}
	// Only words that neither read files nor reach out: the check of those is not what is tried here.
	outside := regexp.MustCompile(`import|stdin|\{\$|\{%|file|auto|geoip|dnssec|sign|etcd|tls|hosts|dnstap|root|tsig|secondary|https|quic|grpc|forward|template`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		seed := slices.DeleteFunc(strings.Split(string(text), "\n"), outside.MatchString)
		f.Add(strings.Join(seed, "\n"))
	}
	f.Fuzz(func(t *testing.T, text string) {
		if outside.MatchString(text) {
			return
		}
		problems, _ := validate("Corefile", []byte(text))
		for _, p := range problems {
			if p.line < 1 || p.text == "" {
				t.Errorf("a problem without a place or a text: %+v", p)
			}
		}
	})
}

// The minimal build must carry kubeadm's Corefile, and none of the code that it is there to leave out.
func TestMinimalBuild(t *testing.T) {
	out, err := exec.Command("go", "list", "-tags", "minimal", "-deps", ".").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	deps := strings.Fields(string(out))
	for _, left := range []string{"acl", "rewrite", "transfer", "tsig", "etcd", "grpc", "grpc_server", "https", "https3", "quic", "dynupdate", "file", "template", "k8s_external"} {
		for _, d := range deps {
			if d == "github.com/coredns/coredns/plugin/"+left || d == "github.com/braidnet/braid/plugin/"+left {
				t.Errorf("%s is linked", d)
			}
		}
	}
	minimal := filepath.Join(t.TempDir(), "coredns")
	if out, err := exec.Command("go", "build", "-tags", "minimal", "-o", minimal, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	if out, err := exec.Command(minimal, "-validate", "-conf", "testdata/Corefile.kubeadm").CombinedOutput(); err != nil {
		t.Errorf("kubeadm's Corefile: %v\n%s", err, out)
	}
	out, err = exec.Command(minimal, "-validate", "-conf", "testdata/Corefile.openshift").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Corefile.openshift:11: bufsize: this program has no such plugin") {
		t.Errorf("a plugin that was left out: %v\n%s", err, out)
	}
}
