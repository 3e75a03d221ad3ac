{{- define "berth.labels" -}}
app.kubernetes.io/name: berth-csi
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.customLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "berth.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "berth.topology" -}}
{{- $all := list -}}
{{- range $key, $value := .Values.topology }}{{ $all = append $all (printf "%s=%s" $key $value) }}{{ end -}}
{{ join "," $all }}
{{- end }}
