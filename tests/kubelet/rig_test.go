// The volume manager of kubelet, driving the FlexVolume executable of berth. This is a test of that executable: all of kubelet's
// code is the distribution's own, taken from its source package when the test is built (see the script build).
package kubelet

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/kubernetes/pkg/kubelet/config"
	"k8s.io/kubernetes/pkg/kubelet/configmap"
	containertest "k8s.io/kubernetes/pkg/kubelet/container/testing"
	kubepod "k8s.io/kubernetes/pkg/kubelet/pod"
	podtest "k8s.io/kubernetes/pkg/kubelet/pod/testing"
	"k8s.io/kubernetes/pkg/kubelet/secret"
	"k8s.io/kubernetes/pkg/kubelet/status"
	statustest "k8s.io/kubernetes/pkg/kubelet/status/testing"
	"k8s.io/kubernetes/pkg/kubelet/volumemanager"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/flexvolume"
	volumetest "k8s.io/kubernetes/pkg/volume/testing"
	"k8s.io/kubernetes/pkg/volume/util/hostutil"
	"k8s.io/mount-utils"
	utilexec "k8s.io/utils/exec"
)

const (
	// What the node of this test is called, by kubelet and by berthd.
	nodeName  = "test"
	namespace = "default"
	driver    = "datera/iscsi"
	fsGroup   = int64(7777)
	// A guest has one processor, and kubelet waits longer after each failure.
	patience = 3 * time.Minute
)

// setting takes a word from the environment; without it there is nothing to test.
func setting(t *testing.T, name string) string {
	value := os.Getenv(name)
	if value == "" {
		t.Fatalf("%s is not set", name)
	}
	return value
}

// host is the node as the distribution's test host has it, but with the real mounts of this machine.
type host struct {
	volume.VolumeHost
}

func (h *host) GetMounter(string) mount.Interface { return mount.New("") }
func (h *host) GetExec(string) utilexec.Interface { return utilexec.New() }
func (h *host) GetNodeName() types.NodeName       { return nodeName }
func (h *host) GetHostName() string               { return nodeName }

// events keeps what kubelet tells the users of a pod.
type events struct {
	mutex sync.Mutex
	texts []string
}

func (e *events) add(reason, text string) {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	e.texts = append(e.texts, reason+": "+text)
}

func (e *events) Event(_ runtime.Object, _, reason, message string) { e.add(reason, message) }

func (e *events) Eventf(_ runtime.Object, _, reason, format string, words ...interface{}) {
	e.add(reason, fmt.Sprintf(format, words...))
}

func (e *events) AnnotatedEventf(_ runtime.Object, _ map[string]string, _, reason, format string, words ...interface{}) {
	e.add(reason, fmt.Sprintf(format, words...))
}

func (e *events) have(text string) bool {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	for _, event := range e.texts {
		if strings.Contains(event, text) {
			return true
		}
	}
	return false
}

func (e *events) all() string {
	e.mutex.Lock()
	defer e.mutex.Unlock()
	return strings.Join(e.texts, "\n")
}

// kubelet is one life of kubelet's volume manager on a node that stays.
type kubelet struct {
	t       *testing.T
	root    string
	client  *fake.Clientset
	pods    kubepod.Manager
	plugins *volume.VolumePluginMgr
	manager volumemanager.VolumeManager
	events  *events
	stop    chan struct{}
}

// start begins a life. What it knows of pods it has from the API server, which is client.
func start(t *testing.T, root string, client *fake.Clientset, pods ...*v1.Pod) *kubelet {
	k := &kubelet{t: t, root: root, client: client, events: &events{}, stop: make(chan struct{})}
	k.pods = kubepod.NewBasicPodManager(podtest.NewFakeMirrorClient(), secret.NewFakeManager(), configmap.NewFakeManager())
	k.plugins = &volume.VolumePluginMgr{}
	node := &host{volumetest.NewFakeVolumeHost(t, root, client, nil)}
	prober := flexvolume.GetDynamicPluginProber(setting(t, "PLUGIN_DIR"), utilexec.New())
	if err := k.plugins.InitPlugins(nil, prober, node); err != nil {
		t.Fatalf("plugins: %v", err)
	}
	states := status.NewManager(client, k.pods, &statustest.FakePodDeletionSafetyProvider{})
	k.manager = volumemanager.NewVolumeManager(false, nodeName, k.pods, states, client, k.plugins,
		&containertest.FakeRuntime{}, mount.New(""), hostutil.NewHostUtil(), node.GetPodsDir(), k.events, false, false,
		volumetest.NewBlockVolumePathHandler())
	k.pods.SetPods(pods)
	ready := config.NewSourcesReady(func(sets.String) bool { return true })
	go k.manager.Run(ready, k.stop)
	return k
}

// end is the end of this life: like a killed kubelet, it undoes nothing.
func (k *kubelet) end() { close(k.stop) }

func (k *kubelet) until(what string, done func() bool) {
	k.t.Helper()
	deadline := time.Now().Add(patience)
	for !done() {
		if time.Now().After(deadline) {
			k.t.Fatalf("not in time: %s\nevents:\n%s", what, k.events.all())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// told waits until it is told why a volume is not there. To the pod it is, as an event, when mounting fails, and as the error that
// its start ends with, when the volume is refused by its options alone. kubelet 1.20 has no events for attaches that it makes
// itself: those are in logs.
func (k *kubelet) told(pod *v1.Pod, mark int, text string) {
	k.t.Helper()
	k.until("to be told "+text, func() bool {
		return k.events.have(text) || failedCall(k.t, mark, "attach", text) || failedCall(k.t, mark, "getvolumename", text)
	})
	if failedCall(k.t, mark, "getvolumename", text) {
		if err := k.manager.WaitForAttachAndMount(pod); err == nil || !strings.Contains(err.Error(), text) {
			k.t.Fatalf("%s: %v, expected: %s", pod.Name, err, text)
		}
	}
}

// run has a pod on this node, whose volumes are there when this returns.
func (k *kubelet) run(pod *v1.Pod) {
	k.t.Helper()
	k.pods.AddPod(pod)
	if err := k.manager.WaitForAttachAndMount(pod); err != nil {
		k.t.Fatalf("%s: %v\nevents:\n%s", pod.Name, err, k.events.all())
	}
}

// remove takes a pod from this node; its volume is unmounted when this returns, and kubelet has removed its directory.
func (k *kubelet) remove(pod *v1.Pod) {
	k.t.Helper()
	k.pods.DeletePod(pod)
	dir := k.dir(pod)
	k.until("unmount of "+pod.Name, func() bool {
		_, err := os.Lstat(dir)
		return os.IsNotExist(err)
	})
}

// dir is where the volume of a pod is.
func (k *kubelet) dir(pod *v1.Pod) string {
	return filepath.Join(k.root, "pods", string(pod.UID), "volumes", "datera~iscsi", volumeOf(pod))
}

func volumeOf(pod *v1.Pod) string {
	return "pv-" + pod.Spec.Volumes[0].PersistentVolumeClaim.ClaimName
}

// mounted is the line of the mount table for the pod's volume; empty without one.
func (k *kubelet) mounted(pod *v1.Pod) string {
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		k.t.Fatal(err)
	}
	for _, line := range strings.Split(string(table), "\n") {
		if fields := strings.Fields(line); len(fields) > 1 && fields[1] == k.dir(pod) {
			return line
		}
	}
	return ""
}

// newPod is a pod with one claim, and a group that is to own the files.
func newPod(name, claim string) *v1.Pod {
	group := fsGroup
	return &v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, UID: types.UID("uid-" + name)},
		Spec: v1.PodSpec{
			SecurityContext: &v1.PodSecurityContext{FSGroup: &group},
			Containers: []v1.Container{{
				Name:         "main",
				VolumeMounts: []v1.VolumeMount{{Name: "data", MountPath: "/data"}},
			}},
			Volumes: []v1.Volume{{
				Name: "data",
				VolumeSource: v1.VolumeSource{
					PersistentVolumeClaim: &v1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
				},
			}},
		},
	}
}

// volumes are a claim and its volume, as the manifests of 2016 have them.
func volumes(claim, fsType string, options map[string]string) []runtime.Object {
	size := resource.MustParse("1Gi")
	mode := v1.PersistentVolumeFilesystem
	all := map[string]string{"volumeID": "kube-" + claim, "size": "1", "replica": "1", "backstoreServer": "127.0.0.1:7717"}
	for key, value := range options {
		all[key] = value
	}
	return []runtime.Object{
		&v1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: "pv-" + claim},
			Spec: v1.PersistentVolumeSpec{
				Capacity:                      v1.ResourceList{v1.ResourceStorage: size},
				AccessModes:                   []v1.PersistentVolumeAccessMode{v1.ReadWriteOnce},
				PersistentVolumeReclaimPolicy: v1.PersistentVolumeReclaimRetain,
				VolumeMode:                    &mode,
				ClaimRef:                      &v1.ObjectReference{Namespace: namespace, Name: claim, UID: types.UID("claim-" + claim)},
				PersistentVolumeSource: v1.PersistentVolumeSource{
					FlexVolume: &v1.FlexPersistentVolumeSource{Driver: driver, FSType: fsType, Options: all},
				},
			},
		},
		&v1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Name: claim, Namespace: namespace, UID: types.UID("claim-" + claim)},
			Spec:       v1.PersistentVolumeClaimSpec{VolumeName: "pv-" + claim, VolumeMode: &mode},
			Status: v1.PersistentVolumeClaimStatus{
				Phase:    v1.ClaimBound,
				Capacity: v1.ResourceList{v1.ResourceStorage: size},
			},
		},
	}
}

// cluster is an API server with these objects.
func cluster(objects ...[]runtime.Object) *fake.Clientset {
	var all []runtime.Object
	for _, some := range objects {
		all = append(all, some...)
	}
	return fake.NewSimpleClientset(all...)
}

// attachments are the names of what berthd has attached.
func attachments(t *testing.T) []string {
	t.Helper()
	socket := setting(t, "BERTH_API")
	client := http.Client{
		Timeout: 30 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}},
	}
	defer client.CloseIdleConnections()
	answer, err := client.Get("http://localhost/v1/attachments")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var list struct{ Attachments []struct{ Name string } }
	if err := json.NewDecoder(answer.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, attachment := range list.Attachments {
		names = append(names, attachment.Name)
	}
	return names
}

// tool runs a program of the system.
func tool(t *testing.T, name string, words ...string) string {
	t.Helper()
	output, err := exec.Command(name, words...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, words, err, output)
	}
	return string(output)
}

// calls are the calls that the driver has logged since mark bytes of its log, in order, without those that ask only.
func calls(t *testing.T, mark int) []string {
	t.Helper()
	log, err := os.ReadFile(setting(t, "DRIVER_LOG"))
	if err != nil {
		t.Fatal(err)
	}
	var calls []string
	for _, line := range strings.Split(string(log[mark:]), "\n") {
		fields := strings.Fields(line)
		// TIME LEVEL CALL ...: STATUS
		if len(fields) < 4 || !(strings.Contains(line, ": Success") || strings.Contains(line, ": failed")) {
			continue
		}
		if call := strings.TrimSuffix(fields[2], ":"); call != "init" && call != "getvolumename" {
			calls = append(calls, call)
		}
	}
	return calls
}

// failedCall is whether the driver has logged, since mark bytes of its log, a call of this name that failed with this text.
func failedCall(t *testing.T, mark int, name, text string) bool {
	t.Helper()
	log, err := os.ReadFile(setting(t, "DRIVER_LOG"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(log[mark:]), "\n") {
		if strings.Contains(line, " "+name+" ") && strings.Contains(line, ": failed: ") && strings.Contains(line, text) {
			return true
		}
	}
	return false
}

// mark is a place in the driver's log.
func mark(t *testing.T) int {
	t.Helper()
	info, err := os.Stat(setting(t, "DRIVER_LOG"))
	if os.IsNotExist(err) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Size())
}
